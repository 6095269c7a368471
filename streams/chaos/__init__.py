"""A seed enters; a simulated fleet's recorded hour leaves, with labels that say what is wrong in it."""
