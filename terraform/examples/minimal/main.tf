# The minimum that a stack needs: who gets the emails. Everything else has a default (../../README.md).

module "pipeline" {
  # From another repository: "git::https://github.com/<org>/<repo>.git//terraform?ref=v1.0.0"
  source = "../.."

  notification_emails = ["ml-team@example.com"]

  # From another repository: the folder of the release's packages.
  # package_dir = "${path.root}/packages"
}

output "bucket_name" {
  description = "Upload CSVs to s3://<bucket>/data/train/."
  value       = module.pipeline.bucket_name
}
