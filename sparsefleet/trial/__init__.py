"""One experiment on one device; needs neither ray nor mlflow."""
