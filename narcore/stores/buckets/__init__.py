"""Binary caches in the buckets of cloud providers.

::

    s3               S3BinaryCacheStore: Amazon S3 and compatible services
    googleazure      ObjectBinaryCacheStore: Google Cloud Storage and Azure Blob Storage
    upload           BucketWriter: writes objects, for the shared tier and for large responses
    obstoreclient    options for the obstore library: timeouts, retries, certificate authorities
    url              the URLs of buckets: parsing only, no network access
    awscredentials   where the credentials for S3 come from
    metadata         detects the metadata service of a cloud
"""
