"""From run folders to tables, figures and one page: many runs compared."""
