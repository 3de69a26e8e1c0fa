from tests.servers import postgres_server_url, postgres_url, redis_url, s3  # noqa: F401
