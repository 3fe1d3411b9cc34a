"""Our commands beside doit's own, one file each."""
