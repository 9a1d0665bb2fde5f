"""From run folders to tables, figures and one page: what a question asked of many runs comes to."""
