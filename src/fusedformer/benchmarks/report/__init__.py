"""What a run tells: rows, tables, pictures, the machine, and the folder that holds them."""
