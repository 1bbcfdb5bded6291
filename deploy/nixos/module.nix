# services.nar-serve: files out of Nix binary caches, over HTTP.
#
# The service is as hardened as ../nar-serve.service, and for the reasons given there; a test holds the two together.
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
      description = "The nar-serve to run.";
    };

    host = lib.mkOption {
      type = lib.types.str;
      default = "127.0.0.1";
      example = "";
      description = "The address to listen on. Empty: every one, IPv4 and IPv6.";
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
        The binary caches to serve from. Everybody on this machine can read them in the Nix store: one with a password
        belongs into environmentFile, as NAR_CACHE_URL.
      '';
    };

    trustedPublicKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      description = ''
        Keys by one of which each path has to be signed. None: everything that the caches say is believed, but for
        cache.nixos.org alone, whose key is known.
      '';
    };

    settings = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      example = { NAR_CACHE_SIZE = "20G"; NAR_METRICS = "on"; NAR_TRUSTED_PROXIES = "127.0.0.1"; };
      description = "More settings, by the names of their environment variables.";
    };

    environmentFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      example = "/run/secrets/nar-serve.env";
      description = "A file with settings that nobody else is to read, such as credentials. They win over the others.";
    };
  };

  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    systemd.services.nar-serve = {
      description = "Files out of Nix binary caches, over HTTP";
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      wantedBy = [ "multi-user.target" ];

      # systemd expands specifiers in these: 10% is written 10%%.
      environment = lib.mapAttrs (_: builtins.replaceStrings [ "%" ] [ "%%" ]) environment;

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${cfg.package}/bin/nar-serve serve";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "on-failure";
        KillMode = "mixed";
        TimeoutStopSec = 75;
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
