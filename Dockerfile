# Two stages: the first has a compiler for the optional C kernel, the second has only what runs.
FROM python:3.13-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/producer
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.txt /src/
RUN /opt/producer/bin/pip install --require-hashes -r /src/requirements.txt
COPY . /src/
RUN /opt/producer/bin/pip install --no-deps /src

FROM python:3.13-slim
LABEL org.opencontainers.image.title="streaming-producer" \
      org.opencontainers.image.description="Streams tables, Telegram chats and HTTP tables into Kafka as Avro"
RUN groupadd --gid 10001 producer \
    && useradd --uid 10001 --gid producer --no-create-home --home-dir /nonexistent producer
COPY --from=build /opt/producer /opt/producer
ENV PATH=/opt/producer/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 9464
# The process is the producer itself: SIGTERM reaches it, and it drains and commits.
STOPSIGNAL SIGTERM
ENTRYPOINT ["producer"]
CMD ["--help"]
