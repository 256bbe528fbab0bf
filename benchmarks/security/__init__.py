"""What an attacker could try: hostile files, open doors, altered plugins, secrets that stay behind."""
