# The appliance: one image for NVIDIA, AMD, Intel and GPU-less hosts. docs/guides/containers.md has sizes and reasons.
# No registry-hosted syntax line, no RUN --mount: the classic builder builds it as well as BuildKit.
ARG BASE=debian:trixie-slim

# --- OpenCL runtimes: each stage leaves in /out only what the loader really opens -------------------------------
FROM ${BASE} AS runtime
SHELL ["/bin/sh", "-euc"]
COPY deploy/collect.sh /usr/local/bin/collect.sh
RUN mkdir /out

FROM runtime AS amd
ARG RUNTIMES="nvidia amd intel cpu"
RUN case " ${RUNTIMES} " in *" amd "*) ;; *) echo no >/out/runtime-amd; exit 0 ;; esac; \
    lib=/usr/lib/x86_64-linux-gnu; \
    collect.sh /out rocm-opencl-icd \
        /etc/OpenCL/vendors/amdocl64.icd "${lib}/libamdocl64.so" "${lib}/libamd_comgr.so.2" \
        "${lib}/libhsa-runtime64.so.1" /usr/share/libdrm/amdgpu.ids

FROM runtime AS intel
ARG RUNTIMES="nvidia amd intel cpu"
RUN case " ${RUNTIMES} " in *" intel "*) ;; *) echo no >/out/runtime-intel; exit 0 ;; esac; \
    collect.sh /out mesa-opencl-icd \
        /etc/OpenCL/vendors/rusticl.icd /usr/lib/x86_64-linux-gnu/libRusticlOpenCL.so.1 \
        '/usr/lib/clc/spirv*-mesa3d-.spv' '/usr/lib/llvm-*/lib/clang/*/include/opencl-c*.h' \
        /usr/share/libdrm/amdgpu.ids

# PoCL itself is a wheel from the lock file. It links each kernel with ld and the C library's development names;
# ld alone, three links and an empty archive stand in for binutils, gcc and libc6-dev.
FROM runtime AS cpu
ARG RUNTIMES="nvidia amd intel cpu"
RUN case " ${RUNTIMES} " in *" cpu "*) ;; *) echo no >/out/runtime-cpu; exit 0 ;; esac; \
    collect.sh /out binutils /usr/bin/ld.bfd; \
    mv /out/usr/bin/ld.bfd /out/usr/bin/ld; \
    lib=/out/usr/lib/x86_64-linux-gnu; \
    ln -s libc.so.6 "${lib}/libc.so"; \
    ln -s libm.so.6 "${lib}/libm.so"; \
    ln -s libgcc_s.so.1 "${lib}/libgcc_s.so"; \
    printf '!<arch>\n' >"${lib}/libgcc.a"

# --- Python: the locked dependencies, then the package, in layers of their own ----------------------------------
FROM ${BASE} AS python
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008  # Debian keeps one version of a package per release; the image lists what it got
RUN apt-get update -q; \
    apt-get install -qy --no-install-recommends binutils gcc libc6-dev python3.13-dev python3.13-venv; \
    rm -rf /var/lib/apt/lists/*
# Only what a lock file names by its hash; no source packages, since their own build requirements have no hashes.
COPY requirements-build.txt /src/
RUN python3.13 -m venv /opt/build; \
    /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /src/requirements-build.txt; \
    python3.13 -m venv --without-pip /opt/vramblk

FROM python AS dependencies
COPY requirements.txt /src/
ARG RUNTIMES="nvidia amd intel cpu"
# Checked-by-hash bytecode carries no timestamps, and nothing can be written next to it at run time.
RUN pip() { /opt/build/bin/pip --python /opt/vramblk/bin/python "$@"; }; \
    pip install --no-cache-dir --no-compile --require-hashes --only-binary :all: -r /src/requirements.txt; \
    case " ${RUNTIMES} " in \
        *" cpu "*) strip --strip-unneeded /opt/vramblk/lib/python3.13/site-packages/pyopencl/.libs/libpocl-*.so ;; \
        *) pip uninstall -y pocl-binary-distribution ;; \
    esac; \
    find /opt/vramblk -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +; \
    /opt/vramblk/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/vramblk/lib; \
    mkdir -p /opt/vramblk/share/licenses/nvidia-ml-py /opt/vramblk/share/licenses/siphash24; \
    sed -n '1,/^$/p' /opt/vramblk/lib/python3.13/site-packages/pynvml.py >/opt/vramblk/share/licenses/nvidia-ml-py/LICENSE; \
    cp /usr/share/common-licenses/Apache-2.0 /opt/vramblk/share/licenses/siphash24/LICENSE; \
    pip freeze >/opt/vramblk/share/python-packages.txt

# The packages with .pxd files, apart from the rest: a change of another package need not wait for the compiler.
FROM python AS compiled
WORKDIR /hot
COPY setup.py ./
COPY vramblk/engine vramblk/engine
COPY vramblk/memory vramblk/memory
COPY vramblk/nbd vramblk/nbd
COPY vramblk/serving vramblk/serving
COPY vramblk/shared vramblk/shared
COPY vramblk/system vramblk/system
RUN umask 022; \
    touch vramblk/__init__.py; \
    VRAMBLK_COMPILE=require /opt/build/bin/python setup.py -q build_ext --inplace; \
    find vramblk -type f ! -name '*.so' -delete; \
    find vramblk -name '*.so' -exec strip --strip-unneeded {} +

FROM dependencies AS package
# What changes most comes last: each COPY that is made again takes seconds.
COPY pyproject.toml setup.py README.md LICENSE /src/
COPY share /src/share
COPY --from=compiled /hot/vramblk /compiled
COPY vramblk /src/vramblk
RUN umask 022; \
    export SOURCE_DATE_EPOCH=315532800 VRAMBLK_COMPILE=no; \
    /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheel /src; \
    /opt/build/bin/pip --python /opt/vramblk/bin/python install --no-cache-dir --no-index --no-deps --no-compile \
        --prefix /package /wheel/*.whl; \
    /opt/vramblk/bin/python -m compileall -q --invalidation-mode unchecked-hash /package/lib; \
    cp -a /compiled/. /package/lib/python3.13/site-packages/vramblk/

# --- The image --------------------------------------------------------------------------------------------------
# A copy of the base, so that no layer holds what is taken out here: setuid bits, which nothing in the image needs, and
# the CA bundle of a build behind a TLS-intercepting proxy (deploy/make-base.sh), with the variable that names it.
FROM ${BASE} AS root
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008  # as above
RUN apt-get update -q; \
    apt-get install -qy --no-install-recommends ocl-icd-libopencl1 python3.13; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/log/*; \
    rm -f /etc/ssl/certs/build-host.crt; \
    find / -xdev -type f -perm /6000 -exec chmod ug-s {} +; \
    mkdir /image; \
    tar -C / --one-file-system --exclude=./image --exclude=./image.tar -cf /image.tar .; \
    tar -C /image -xf /image.tar; \
    mkdir -p /image/dev /image/proc /image/sys

FROM scratch
COPY --from=root /image/ /
SHELL ["/bin/sh", "-euc"]
# The classic builder fails at an empty layer, hence a file where a runtime was not chosen.
COPY --from=amd /out/ /
COPY --from=intel /out/ /
COPY --from=cpu /out/ /
ARG RUNTIMES="nvidia amd intel cpu"
# The NVIDIA toolkit passes the driver's libraries in; before 1.20 it brings no ICD file.
RUN mkdir -p /etc/OpenCL/vendors /run/vramblk /var/cache/vramblk; \
    rm -f /runtime-*; \
    case " ${RUNTIMES} " in *" nvidia "*) echo libnvidia-opencl.so.1 >/etc/OpenCL/vendors/nvidia.icd ;; esac; \
    ldconfig; \
    rm -f /var/cache/ldconfig/aux-cache
COPY --from=dependencies /opt/vramblk/ /opt/vramblk/
COPY entrypoint.sh /usr/local/bin/entrypoint.sh

# Every cache of a runtime lies in one folder: with a read-only root it is a tmpfs, mounted exec since PoCL loads
# its kernels from there.
ENV PATH=/opt/vramblk/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/vramblk \
    XDG_CACHE_HOME=/var/cache/vramblk \
    POCL_CACHE_DIR=/var/cache/vramblk/pocl \
    CUDA_CACHE_PATH=/var/cache/vramblk/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VRAMBLK_LISTEN_ADDR=0.0.0.0:10809,unix:/run/vramblk/nbd.sock \
    VRAMBLK_METRICS_ADDR=0.0.0.0:10810
EXPOSE 10809/tcp 10810/tcp
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 CMD ["vramblk", "status", "--health"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]

# In /usr/share/doc/*/copyright, /opt/vramblk/share/licenses and the folders of the Python packages are the texts.
# LicenseRef-Debian: those of the base's packages. docs/guides/containers.md says which part has which.
ARG BASE
ARG BASE_DIGEST=
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vramblk" \
      org.opencontainers.image.description="GPU memory as an NBD block device" \
      org.opencontainers.image.licenses="MIT AND 0BSD AND Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND CC0-1.0 AND GPL-3.0-or-later AND GPL-3.0-or-later WITH GCC-exception-3.1 AND LGPL-2.1-or-later AND LGPL-3.0-or-later AND NCSA AND PSF-2.0 AND Zlib AND LicenseRef-Debian" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      vramblk.runtimes="${RUNTIMES}"

# Last, so that a change of the source repeats this step only.
COPY --from=package /package/ /opt/vramblk/
