"""What the API, the reconciler and the workers share: settings, rows and their rules, storage, queue."""
