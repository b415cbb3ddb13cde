"""Folders in buckets (gs://, s3://): read into a cache on this machine, and written to from it (README.md)."""
