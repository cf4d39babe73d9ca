# AWS resources of the pipeline: a bucket for archives, results and models, and a role that reads and writes them, for the pods of
# an EKS cluster (IRSA) or for EC2 machines. The Kubernetes cluster itself is not created here.
#   terraform init && terraform apply -var bucket=my-deeplab -var oidc_provider_arn=arn:aws:iam::...:oidc-provider/...

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60, < 7.0"
    }
  }
}

variable "bucket" {
  description = "Name of the bucket: archives are below archive/, tables below results/, models below models/."
  type        = string
}

variable "oidc_provider_arn" {
  description = "The EKS cluster's OIDC provider; empty for EC2 machines instead of pods."
  type        = string
  default     = ""
}

variable "service_account" {
  description = "namespace:name of the pods' service account (infra/kuberay)."
  type        = string
  default     = "deeplab:deeplab"
}

locals {
  on_eks = var.oidc_provider_arn != ""
  issuer = replace(var.oidc_provider_arn, "/^.*oidc-provider\\//", "")
}

resource "aws_s3_bucket" "data" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "data" {
  bucket                  = aws_s3_bucket.data.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "data" {
  bucket = aws_s3_bucket.data.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# A table or a model that was deleted by mistake can be restored.
resource "aws_s3_bucket_versioning" "data" {
  bucket = aws_s3_bucket.data.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "data" {
  bucket     = aws_s3_bucket.data.id
  depends_on = [aws_s3_bucket_versioning.data]

  rule {
    id     = "uploads-that-nobody-finished"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

  rule {
    id     = "what-was-deleted-or-replaced"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = 30
    }
    expiration {
      expired_object_delete_marker = true
    }
  }
}

data "aws_iam_policy_document" "work" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [aws_s3_bucket.data.arn]
  }

  statement {
    sid       = "ReadArchives"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.data.arn}/archive/*"]
  }

  statement {
    sid       = "WriteResultsAndModels"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.data.arn}/results/*", "${aws_s3_bucket.data.arn}/models/*"]
  }

  # `deeplab vacuum --delete`, the checkpoints of trainings, and entries of the log that have expired.
  statement {
    sid       = "Clean"
    actions   = ["s3:DeleteObject"]
    resources = ["${aws_s3_bucket.data.arn}/results/*", "${aws_s3_bucket.data.arn}/models/*"]
  }
}

resource "aws_iam_policy" "work" {
  name   = "${var.bucket}-deeplab"
  policy = data.aws_iam_policy_document.work.json
}

data "aws_iam_policy_document" "trust" {
  dynamic "statement" {
    for_each = local.on_eks ? [1] : []
    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]
      principals {
        type        = "Federated"
        identifiers = [var.oidc_provider_arn]
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = ["system:serviceaccount:${var.service_account}"]
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = local.on_eks ? [] : [1]
    content {
      actions = ["sts:AssumeRole"]
      principals {
        type        = "Service"
        identifiers = ["ec2.amazonaws.com"]
      }
    }
  }
}

resource "aws_iam_role" "work" {
  name               = "${var.bucket}-deeplab"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy_attachment" "work" {
  role       = aws_iam_role.work.name
  policy_arn = aws_iam_policy.work.arn
}

resource "aws_iam_instance_profile" "work" {
  count = local.on_eks ? 0 : 1
  name  = "${var.bucket}-deeplab"
  role  = aws_iam_role.work.name
}

output "role_arn" {
  description = "Role for the service account's annotation eks.amazonaws.com/role-arn."
  value       = aws_iam_role.work.arn
}

output "places" {
  description = "Archive, results and models for deeplab's options."
  value = {
    archive = "s3://${var.bucket}/archive"
    results = "s3://${var.bucket}/results"
    models  = "s3://${var.bucket}/models"
  }
}
