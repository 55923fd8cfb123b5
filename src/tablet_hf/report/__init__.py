"""Pictures of what the package does to scans, and pages that hold them."""
