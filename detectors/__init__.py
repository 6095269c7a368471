"""What a problem is: pure functions over frames. No files, clocks, brokers or databases."""
