"""A FastAPI application that reads one row of the service's database by its primary key, and does nothing else."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import text

from service.shared.db.migrate import open_engine
from service.shared.settings import load

settings = load()
engine = open_engine(settings).execution_options(read_only=True)
app = FastAPI()
ROW = text("SELECT id, name, state, priority, created_at FROM jobs WHERE id = :id")


@app.get("/jobs/{job_id}")
def get_job(job_id: str) -> dict[str, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(ROW, {"id": job_id}).mappings().one())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=settings.port, log_config=None, access_log=False)
