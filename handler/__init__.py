"""A service on AWS Lambda: `warm` is the engine to keep, the other files a sample to replace."""
