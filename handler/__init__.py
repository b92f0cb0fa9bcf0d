"""What runs in AWS Lambda and nothing else: copy this folder, keep the engine, replace the Order."""
