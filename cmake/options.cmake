# Options, and what was found for each.
option(THERMOCLINE_TESTS "Build the tests" ON)
option(THERMOCLINE_WERROR "Treat warnings as errors" ON)
set(THERMOCLINE_SANITIZE "" CACHE STRING "Sanitizers, for example address,undefined or thread")
option(THERMOCLINE_COVERAGE "Count what of the tiers runs; tools/coverage asks for it" OFF)
option(THERMOCLINE_FUZZ "Build the fuzzers; needs clang and its libFuzzer" OFF)
set(THERMOCLINE_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set_property(CACHE THERMOCLINE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(THERMOCLINE_FAISS AUTO CACHE STRING "FAISS, to measure its indexes beside ours: AUTO, ON or OFF")
set_property(CACHE THERMOCLINE_FAISS PROPERTY STRINGS AUTO ON OFF)

# g++ 12 reports string and vector operations that it inlined itself (GCC bugs 105329, 105762).
set(THERMOCLINE_WARNINGS -Wno-restrict -Wno-stringop-overflow -Wall -Wextra -Wpedantic -Wshadow)
if(THERMOCLINE_WERROR)
  list(APPEND THERMOCLINE_WARNINGS -Werror)
endif()
if(THERMOCLINE_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${THERMOCLINE_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${THERMOCLINE_SANITIZE})
endif()
if(THERMOCLINE_COVERAGE)
  add_link_options(--coverage)
endif()
# The answer is part of the contract: no reassociation beyond what the kernels write themselves.
# (nvcc takes no such flags; cmake/cuda.cmake has its own.)
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)

list(APPEND CMAKE_MODULE_PATH ${PROJECT_SOURCE_DIR}/cmake)  # FindDNNL
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(TBB REQUIRED)
find_package(DNNL MODULE REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Boost REQUIRED COMPONENTS program_options)
pkg_check_modules(openblas REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(uring REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET hwloc)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(sodium REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
include(faiss)
