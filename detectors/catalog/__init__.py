"""What is concluded: one detector a file. The file name is its id, its runbook and its cases folder."""
