"""The deployment on AWS: SAM templates, the connection budget and the deployment scripts."""
