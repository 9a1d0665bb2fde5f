"""The laboratory: experiments in files, cells that are run and recorded, tables and figures; without Flower and Ray."""
