"""The command line; nothing here is imported by the library."""
