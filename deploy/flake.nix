# The flake is in deploy/ to keep the top directory of the repository small. Nix still copies the whole checkout as the source.
# Run these commands in a checkout; without a checkout, write git+https://...?dir=deploy instead of ./deploy.
#
#     nix run     './deploy' -- serve
#     nix develop './deploy' -c ./start-dev
{
  description = "Serve every file of every store path of a Nix binary cache at a plain URL";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      forAllSystems = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = forAllSystems (pkgs: rec {
        nar-serve = pkgs.callPackage ./package.nix { };
        default = nar-serve;
      });

      overlays.default = final: prev: {
        nar-serve = final.callPackage ./package.nix { };
      };

      nixosModules = rec {
        nar-serve = import ./nixos/module.nix;
        default = nar-serve;
      };

      devShells = forAllSystems (pkgs: {
        default = import ./shell.nix { inherit pkgs; };
      });

      checks = forAllSystems (pkgs: {
        nar-serve = pkgs.callPackage ./package.nix { };
      });
    };
}
