# CUDA kernels are built wherever nvcc is. AUTO falls back and says why; ON fails instead. What the
# rooms see of them is kernels/device.h, which thermocline_device defines: a device, or none.
set(THERMOCLINE_CUDA_FOUND OFF)
set(cuda_note "")
if(NOT THERMOCLINE_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier NOTFOUND: look again
    # The toolkit's own installer leaves nvcc off PATH.
    if(NOT DEFINED ENV{CUDACXX})
      find_program(THERMOCLINE_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin
                   PATHS /usr/local/cuda /opt/cuda)
      mark_as_advanced(THERMOCLINE_NVCC)
      if(THERMOCLINE_NVCC)
        set(ENV{CUDACXX} ${THERMOCLINE_NVCC})
      endif()
    endif()
    if(DEFINED ENV{CUDACXX})
      include(CheckLanguage)
      check_language(CUDA)
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80 90)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit)
    set(cuda_note "nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${CMAKE_CUDA_COMPILER}")
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      string(APPEND cuda_note ": too old, C++20 needs 12.0")
    elseif(NOT TARGET CUDA::cudart_static)
      string(APPEND cuda_note ": the static runtime, libcudart_static, is missing beside it")
    else()
      set(THERMOCLINE_CUDA_FOUND ON)
      string(APPEND cuda_note ", for sm ${CMAKE_CUDA_ARCHITECTURES}")
    endif()
  elseif(DEFINED ENV{CUDACXX})
    set(cuda_note "$ENV{CUDACXX} does not compile for this host")
  else()
    set(cuda_note "no nvcc on PATH, in CUDA_PATH or in /usr/local/cuda/bin")
    string(APPEND cuda_note ", and none named by -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  if(THERMOCLINE_CUDA STREQUAL "ON" AND NOT THERMOCLINE_CUDA_FOUND)
    message(FATAL_ERROR "THERMOCLINE_CUDA=ON, but: ${cuda_note}")
  endif()
  set(cuda_note "; ${cuda_note}")
endif()
message(STATUS "CUDA: ${THERMOCLINE_CUDA_FOUND} (asked for: ${THERMOCLINE_CUDA}${cuda_note})")

if(THERMOCLINE_CUDA_FOUND)
  # CMake 3.25 takes the standard from C++, and does not know how nvcc spells it.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  # Host code in .cu files gets the host's warnings, without those that nvcc's own output raises
  # (-Wpedantic). What the device multiplies and adds in one rounding is written as fmaf, never
  # chosen by the compiler. std::span's members are constexpr: relaxed, device code may call them.
  set(THERMOCLINE_CUDA_OPTIONS --expt-relaxed-constexpr --fmad=false
      -Xcompiler=-Wall,-Wextra,-Wshadow)
  if(THERMOCLINE_WERROR)
    list(APPEND THERMOCLINE_CUDA_OPTIONS -Werror=all-warnings)
  endif()

  file(GLOB cuda_sources CONFIGURE_DEPENDS kernels/cuda/*.cu kernels/cuda/*.cpp)
  add_library(thermocline_device OBJECT ${cuda_sources})
  target_compile_options(thermocline_device PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:${THERMOCLINE_CUDA_OPTIONS}>
    $<$<COMPILE_LANGUAGE:CXX>:${THERMOCLINE_WARNINGS}>)
  # The static runtime: a program starts, and says what is missing, where there is no CUDA.
  target_link_libraries(thermocline_device PUBLIC CUDA::cudart_static)
else()
  add_library(thermocline_device OBJECT kernels/no_cuda/device.cpp)
  target_compile_options(thermocline_device PRIVATE ${THERMOCLINE_WARNINGS})
endif()
target_include_directories(thermocline_device PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
