/**
 * Who may talk to the agent. A page in a browser on the device could reach a loopback server under a name of its own
 * (DNS rebinding), so the Host header and, where there is one, the Origin must name this machine. Where the server is
 * bound to every address, any IP literal may be the host: a literal cannot be rebound.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { isIP } from 'node:net';
import { hostname } from 'node:os';
import { ApiError } from './api-error';

export interface GuardOptions {
  /** the address the server is bound to, without port */
  boundHost: string;
  /** further names this machine goes by */
  allowedHosts: readonly string[];
  apiKey: string | null;
}

interface GuardedHeaders {
  host?: string | undefined;
  origin?: string | undefined;
  authorization?: string | undefined;
}

/** Bound to every address. */
export function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::' || host === '';
}

export class RequestGuard {
  private readonly names: ReadonlySet<string>;
  private readonly anyLiteral: boolean;
  private readonly keyDigest: Buffer | null;

  constructor(options: GuardOptions) {
    this.anyLiteral = isWildcard(options.boundHost);
    this.names = new Set([
      'localhost', '127.0.0.1', '::1',
      ...(this.anyLiteral ? [hostname()] : [options.boundHost]), ...options.allowedHosts,
    ].map((name) => name.toLowerCase()));
    this.keyDigest = options.apiKey === null ? null : sha256(options.apiKey);
  }

  /** Throws ApiError (403) where Host or Origin names another machine. */
  checkSite(headers: GuardedHeaders): void {
    if (!this.isOurs(hostnameOf(headers.host ?? ''))) {
      throw new ApiError(403, 'permission_error', 'the Host header does not name this machine', null, 'host_not_allowed');
    }
    if (headers.origin !== undefined && !this.isOurs(originHost(headers.origin))) {
      throw new ApiError(403, 'permission_error', 'requests from pages of other origins are not allowed', null, 'origin_not_allowed');
    }
  }

  /** Throws ApiError (401) where a key is set and another or none was given. Takes as long whatever the key given. */
  checkKey(headers: GuardedHeaders): void {
    if (this.keyDigest === null) return;
    const given = /^Bearer +(.+)$/i.exec(headers.authorization ?? '')?.[1] ?? '';
    if (timingSafeEqual(sha256(given.trim()), this.keyDigest)) return;
    throw new ApiError(401, 'authentication_error', 'wrong or missing API key; send it as "Authorization: Bearer <key>"', null, 'invalid_api_key');
  }

  private isOurs(name: string | null): boolean {
    return name !== null && (this.names.has(name) || (this.anyLiteral && isIP(name) !== 0));
  }
}

/** `name`, `name:port`, `[v6]` or `[v6]:port`; lower case, without brackets; null where it is none of these. */
function hostnameOf(host: string): string | null {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^\s:[\]/@]+))(?::\d{1,5})?$/i.exec(host.trim());
  return (match?.[1] ?? match?.[2])?.toLowerCase().replace(/\.$/, '') ?? null;
}

function originHost(origin: string): string | null {
  const match = /^https?:\/\/(.+)$/i.exec(origin.trim());
  return match ? hostnameOf(match[1]!) : null;
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
