"""What tests do to the S3 server by Amazon's own client: make|list URL BUCKET, put|put-new URL BUCKET KEY FILE."""

import base64
import sys

import boto3

command, url, bucket, *rest = sys.argv[1:]
s3 = boto3.client(
    "s3",
    endpoint_url=url,
    region_name="us-east-1",
    aws_access_key_id="millrace",
    aws_secret_access_key="millrace",
)
if command == "make":
    s3.create_bucket(Bucket=bucket)
elif command == "list":
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            body = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            print(item["Key"], base64.b64encode(body).decode(), sep="\t")
elif command in ("put", "put-new"):
    key, file = rest
    # Only where there is none: the answer is `taken` otherwise.
    condition = {"IfNoneMatch": "*"} if command == "put-new" else {}
    try:
        with open(file, "rb") as body:
            s3.put_object(Bucket=bucket, Key=key, Body=body, **condition)
        print("put")
    except s3.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
            raise
        print("taken")
