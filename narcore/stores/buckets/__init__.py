"""Binary caches in the buckets of cloud providers.

::

    s3               S3BinaryCacheStore: Amazon S3 and compatible services
    googleazure      ObjectBinaryCacheStore: Google Cloud Storage and Azure Blob Storage
    upload           BucketWriter: writes objects, for the shared tier and for large responses
    obstoreclient    what all uses of the obstore library share: timeouts, retries, certificate authorities
    url              the URLs of buckets; pure text
    awscredentials   where the credentials for S3 come from
    metadata         whether this machine has a cloud's metadata service
"""
