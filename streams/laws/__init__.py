"""What a detector must obey to be sound live: cases enter, and which law is broken leaves."""
