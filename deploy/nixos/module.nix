# NixOS module services.nar-serve: serves files of Nix binary caches over HTTP.
#
# The service has the same settings as ../nar-serve.service, where comments give the reasons. A test compares the two files.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.nar-serve;

  environment = {
    HTTP_ADDR = "${if lib.hasInfix ":" cfg.host then "[${cfg.host}]" else cfg.host}:${toString cfg.port}";
    NAR_CACHE_URL = lib.concatStringsSep " " cfg.caches;
  } // lib.optionalAttrs (cfg.trustedPublicKeys != [ ]) {
    NAR_TRUSTED_PUBLIC_KEYS = lib.concatStringsSep " " cfg.trustedPublicKeys;
  } // cfg.settings;
in
{
  options.services.nar-serve = {
    enable = lib.mkEnableOption "nar-serve, which serves the files of Nix binary caches over HTTP";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ../package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ../package.nix { }";
      description = "The nar-serve package to run.";
    };

    host = lib.mkOption {
      type = lib.types.str;
      default = "127.0.0.1";
      example = "";
      description = "The address to listen on. If empty, nar-serve listens on all addresses, IPv4 and IPv6.";
    };

    port = lib.mkOption {
      type = lib.types.port;
      default = 8383;
      description = "The port to listen on.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to open the port in the firewall.";
    };

    caches = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ "https://cache.nixos.org" ];
      example = [ "https://cache.example.org?priority=10" "https://cache.nixos.org" ];
      description = ''
        URLs of the binary caches to serve from. All users of this machine can read these URLs in the Nix store. If a URL
        contains a password, set NAR_CACHE_URL in environmentFile instead.
      '';
    };

    trustedPublicKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      description = ''
        Trusted public keys. Each store path must be signed by one of them. If the list is empty, signatures are checked
        only if cache.nixos.org is the only cache, because its key is built in.
      '';
    };

    settings = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      example = { NAR_CACHE_SIZE = "20G"; NAR_MAX_CONNECTIONS = "1000"; NAR_METRICS = "on"; NAR_TRUSTED_PROXIES = "127.0.0.1"; };
      description = "Other settings. The names are those of the environment variables.";
    };

    environmentFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      example = "/run/secrets/nar-serve.env";
      description = "A file with secret settings, such as credentials. They take precedence over the other settings.";
    };
  };

  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    systemd.services.nar-serve = {
      description = "Serves files of Nix binary caches over HTTP";
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      wantedBy = [ "multi-user.target" ];

      # systemd expands specifiers in environment variables, so 10% must be written as 10%%.
      environment = lib.mapAttrs (_: builtins.replaceStrings [ "%" ] [ "%%" ]) environment;

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${cfg.package}/bin/nar-serve serve";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "on-failure";
        KillMode = "mixed";
        TimeoutStopSec = 75;
        LimitNOFILE = 65536;
        DynamicUser = true;
        CacheDirectory = "nar-serve";
        CacheDirectoryMode = "0700";
        UMask = "0077";
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
        PrivateDevices = true;
        PrivateUsers = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        NoNewPrivileges = true;
        CapabilityBoundingSet = "";
        AmbientCapabilities = "";
        RestrictAddressFamilies = "AF_INET AF_INET6 AF_UNIX";
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        RemoveIPC = true;
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
        SystemCallErrorNumber = "EPERM";
      } // lib.optionalAttrs (cfg.environmentFile != null) {
        EnvironmentFile = cfg.environmentFile;
      };
    };
  };
}
