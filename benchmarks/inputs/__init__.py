"""What a user could type by mistake, or feed on purpose: every answer is a grid or one clear sentence."""
