"""The only importer of mlflow."""
