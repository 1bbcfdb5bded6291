# A shell for ./start-dev and ./start-dev test: nix-shell deploy/shell.nix
#
# As on other systems, start-dev installs the Python packages from PyPI into .venv. This shell provides Python, the libraries that
# binary wheels link to, and the programs that the tests run, or whose results the tests compare with nar-serve's.
{ pkgs ? import <nixpkgs> { } }:

pkgs.mkShell {
  packages = with pkgs; [
    python313
    uv
    git
    nix
    nginx
    curl
    nodejs
    xz
    zstd
    bzip2
    gzip
    brotli
    lz4
    lzip
    libarchive
    unzip
  ];

  env = {
    # Binary wheels need the C++ library, which NixOS does not have in the usual place. uv must use this Python, and not download
    # another one.
    LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib pkgs.zlib ];
    UV_PYTHON_DOWNLOADS = "never";
  };
}
