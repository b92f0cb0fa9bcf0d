"""What runs in AWS Lambda: copy this folder, keep the engine, replace the Order."""
