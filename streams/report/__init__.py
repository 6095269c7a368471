"""Answers leave here, out of the state folder: queries, findings, the morning report. Nothing here writes."""
