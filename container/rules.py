"""Lists the files of the standard library and the packages that the container image does not need."""

from typing import Final

# Patterns of paths relative to a folder; `*` matches any characters, slashes too.
LEFT_OUT_OF_STANDARD_LIBRARY: Final = (
    "site-packages/*",
    "config-*",  # for embedding the interpreter in C programs
    # Tk, the editor and demos that need it, and terminals
    "tkinter/*",
    "idlelib/*",
    "turtle*",
    "curses/*",
    "lib-dynload/_tkinter.*",
    "lib-dynload/_curses*",
    "lib-dynload/readline.*",
    # installing, converting and documenting packages
    "ensurepip/*",
    "venv/*",
    "distutils/*",
    "lib2to3/*",
    "pydoc*",
    # databases, and other things that an image server does not use
    "sqlite3/*",
    "lib-dynload/_sqlite3.*",
    "dbm/*",
    "lib-dynload/_*dbm.*",
    "lib-dynload/nis.*",
    "lib-dynload/_crypt.*",
    "lib-dynload/ossaudiodev.*",
    "lib-dynload/_test*",
    "lib-dynload/_ctypes_test.*",
    "lib-dynload/xx*",
    "*/test/*",
    "*/tests/*",
    "test/*",
    "unittest/*",
    "doctest*",
    "__phello__/*",
    "ctypes/macholib/*",  # for macOS
    "lib-dynload/_codecs_*",  # East Asian encodings older than Unicode
)
LEFT_OUT_OF_PACKAGES: Final = (
    # files that a server does not import, in any package
    "bin/*",
    "*/tests/*",
    "*/testing/*",
    "*.pyi",
    "*.pxd",
    "*.pyx",
    "*.h",
    "*.a",
    "*/py.typed",
    # numpy: Fortran and C interfaces, build tools
    "numpy/f2py/*",
    "numpy/distutils/*",
    "numpy/_pyinstaller/*",
    "numpy/_core/lib/*",
    # numpy: modules of its tests, and mathematics that the server does not use
    "numpy/_core/*_tests.*",
    "numpy/_core/_simd.*",
    "numpy/random/*",
    "numpy/fft/*",
    "numpy/ma/*",
    "numpy/polynomial/*",
    # onnxruntime: making and changing models, and a second copy of the engine for C programs
    "onnxruntime/transformers/*",
    "onnxruntime/tools/*",
    "onnxruntime/quantization/*",
    "onnxruntime/datasets/*",
    "onnxruntime/backend/*",
    "onnxruntime/capi/libonnxruntime.so.*",
    # OpenVINO: engines for other devices with their settings, choosing among devices, and two copies of the plug-in
    "onnxruntime_ep_openvino/libopenvino_intel_gpu_plugin.so",
    "onnxruntime_ep_openvino/libopenvino_intel_npu_plugin.so",
    "onnxruntime_ep_openvino/libopenvino_auto*_plugin.so",
    "onnxruntime_ep_openvino/libopenvino_hetero_plugin.so",
    "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so.*",
    "onnxruntime_ep_openvino/cache.json",
    # Pillow: windows, fonts and colour management
    "PIL/_imagingtk.*",
    "PIL/_imagingft.*",
    "PIL/_imagingcms.*",
)
# Dependencies of onnxruntime that only its tools import.
LEFT_OUT_DISTRIBUTIONS: Final = ("flatbuffers", "protobuf", "packaging")
# Licences of bundled libraries that a package names without their texts, which are in Debian's common licences.
LICENCES_WITHOUT_TEXT: Final = {"pi_heif": ("LGPL-3", "GPL-3")}
# The files of a `.dist-info` that name a package's authors and licence; the others are for installers.
KEPT_METADATA: Final = (
    "*/METADATA",
    "*/LICEN[CS]E*",
    "*/NOTICE*",
    "*/AUTHORS*",
    "*/COPYING*",
    "*/licenses/*",
    "*/sboms/*",
)
