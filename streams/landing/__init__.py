"""Where rows, tables and findings come to rest: the lake of Parquet parts and one readable DuckDB file."""
