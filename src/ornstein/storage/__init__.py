"""Everything that touches the disk: files, weights, published state dicts, hub folders, configurations."""
