"""One file a task: model, objective and batches joined. Loaded only where training runs."""
