"""The laboratory: experiments as files, cells run and recorded, tables and figures; no Flower, no Ray."""
