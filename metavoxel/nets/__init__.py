"""Network building blocks. Know nothing of files, tables or units."""
