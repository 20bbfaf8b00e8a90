# Two stages: the first has a compiler for the C kernel, and what makes the list of contents; the second has only what
# runs. Everything from the package index is pinned by hash, for the build as well. `make test` tests what it can without
# a container engine (tests/ops/test_image.py); `make test-image` builds and runs it.
FROM python:3.13-slim AS build
# The compiler's version follows the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 SOURCE_DATE_EPOCH=315532800
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
RUN python -m venv /opt/tools \
    && /opt/tools/bin/pip install --require-hashes -r requirements-build.txt \
    && /opt/tools/bin/pip wheel --require-hashes --no-build-isolation --wheel-dir /dist -r requirements.txt
COPY pyproject.toml setup.py README.md ./
COPY schemas ./schemas
COPY producer ./producer
# The kernels are optional where no compiler is; here they have to be there. Byte code is told by what it was made from, not
# by when, so that the same input is the same image.
RUN /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && python -m venv --without-pip /opt/producer \
    && /opt/tools/bin/pip --python /opt/producer install --no-deps --no-index --no-compile /dist/*.whl \
    && /opt/producer/bin/python -IB -c "import producer.encoding._kernel, producer.sources.sql._pgcopy" \
    && /opt/producer/bin/python -I -m compileall -q --invalidation-mode unchecked-hash /opt/producer/lib \
    && /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /opt/producer/sbom.cdx.json /opt/producer

FROM python:3.13-slim
LABEL org.opencontainers.image.title="streaming-producer" \
      org.opencontainers.image.description="Streams tables, Telegram chats and HTTP tables into Kafka as Avro" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 producer \
    && useradd --uid 10001 --gid producer --no-create-home --home-dir /nonexistent producer \
    && install --directory --owner=10001 --group=10001 /var/lib/producer
COPY --from=build /opt/producer /opt/producer
ENV PATH=/opt/producer/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 9464
# The process is the producer itself and has no children: SIGTERM reaches it, and it drains and commits.
STOPSIGNAL SIGTERM
# /livez depends on no other server. HTTP_PORT: where http.port is not the usual one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=6 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('HTTP_PORT', '9464') + '/livez', timeout=3)"]
ENTRYPOINT ["producer"]
CMD ["--help"]
