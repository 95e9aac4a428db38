# The server, for CPUs. docs/serve.md says how to build and run it.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 speech
WORKDIR /app

# What `serve` imports, in the tested versions. More options of pip, such as an index of PyTorch for
# CPUs (the one on PyPI brings gigabytes of CUDA): --build-arg PIP_OPTIONS="..."
ARG PIP_OPTIONS=""
COPY requirements-lock.txt ./
RUN pip install --no-cache-dir $PIP_OPTIONS -c requirements-lock.txt \
      torch numpy soundfile soxr av sentencepiece lhotse urllib3 kaldialign tqdm pyyaml safetensors \
      onnxruntime starlette uvicorn websockets prometheus-client python-multipart

COPY xlsr_transducer ./xlsr_transducer

USER speech
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
EXPOSE 6006
# Not /ready: a server that is full or draining is healthy.
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s CMD ["python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:6006/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "xlsr_transducer.serve", "--host", "0.0.0.0"]
CMD ["--exp-dir", "/model"]
