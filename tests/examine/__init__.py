"""The examination of any function: `infra.local.examine`."""
