"""What people browse and share: the ledger's outbox, written to MLflow by one uploader. The only importer of mlflow."""
