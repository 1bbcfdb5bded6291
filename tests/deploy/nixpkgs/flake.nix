# A stand-in for nixpkgs: the few functions that deploy/ uses, with the same behavior. A package is a derivation with only a name.
{
  outputs = { self }:
    let
      lib = import ./lib.nix;
      packagesOf = system:
        let
          named = name: derivation { inherit name system; builder = "/bin/sh"; };
          setOf = names: builtins.listToAttrs (map (name: { inherit name; value = named name; }) names);
          build = args: named args.pname // { inherit args; };
          pkgs = setOf [
            "brotli" "bzip2" "coreutils" "curl" "git" "gzip" "libarchive" "lz4" "lzip" "nginx" "nix" "nodejs" "python313"
            "unzip" "uv" "xz" "zlib" "zstd"
          ] // {
            inherit lib;
            stdenv.cc.cc.lib = named "gcc-lib";
            mkShell = args: named "shell" // { inherit args; };
            # The test writes the names of the packages to this file.
            python3Packages = setOf (builtins.fromJSON (builtins.readFile ./python.json))
              // { buildPythonApplication = build; };
            callPackage = path: args:
              let function = import path;
              in function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // args);
          };
        in pkgs;
    in {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ] packagesOf;
    };
}
