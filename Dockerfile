# docker build -t convai .                             with the released model in models/
# docker build --build-arg PRETRAINED=0 -t convai .    without
# docker run --rm -it convai bash                      a shell beside the scripts; add --gpus all where there are some
# docker run --rm -p 127.0.0.1:8000:8000 convai python3 serve.py --host 0.0.0.0 --model models/     the web page
FROM python:3.11-slim

# For pip, while building only: a folder or an index with other wheels of torch, say the smaller ones without CUDA.
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL

# From what changes rarely to what changes often, so that an edited script builds in seconds.
# The locks hold all but PyTorch and what only its CUDA build needs: scripts/lock.sh says why.
COPY requirements.txt requirements.lock requirements-parlai.lock /tmp/
RUN python3 -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements.lock \
 && python3 -m pip install --no-cache-dir -r /tmp/requirements.txt \
 && python3 -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements-parlai.lock

RUN useradd --create-home --uid 1000 convai && install --directory --owner convai /workspace /workspace/models
WORKDIR /workspace
USER convai

ARG PRETRAINED=1
COPY --chown=convai convai/__init__.py convai/errors.py convai/
COPY --chown=convai convai/io/ convai/io/
COPY --chown=convai scripts/download_released_model.py scripts/
RUN if [ "$PRETRAINED" != 0 ]; then python3 scripts/download_released_model.py models; fi

COPY --chown=convai . .
# ParlAI would download its tasks beside its code, where this user cannot write.
ENV PARLAI_DATAPATH=/home/convai/parlai
# Of serve.py, where that is what was started.
EXPOSE 8000
HEALTHCHECK --start-period=5m --timeout=10s CMD ["python3", "-m", "convai.serve.health"]
CMD ["bash"]
