/**
 * The device's identity: a private key that is made here and never leaves, the certificate the fleet gave for it, and
 * the fleet's CA, pinned at first contact by the fingerprint in the enrolment token. Decides what the agent must do
 * before it can dial (nothing, enrol, enrol again with its key) and how it dials. Kept in the state folder.
 */
import { createHash, createPrivateKey, generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, type Client, credentials } from '@grpc/grpc-js';
import { COORDINATOR_NAME, type EnrolmentTokenText, type Logger } from '@moefleet/runtime';
import type { StateFolder } from './state-folder';

const FILES = { key: 'device-key.pem', certificate: 'device-cert.pem', ca: 'fleet-ca.pem' } as const;

export interface ChannelSecurity { credentials: ChannelCredentials; options: ChannelOptions }

/** PEM */
export interface DeviceTls { readonly ca: string; readonly key: string; readonly cert: string; }

/** Extended key usage of TLS servers. */
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1';

/** grpc-js does not export the interface. */
export type LiveChannel = ReturnType<Client['getChannel']>;

export const PLAINTEXT: ChannelSecurity = { credentials: credentials.createInsecure(), options: {} };

export type IdentityState =
  /** neither certificate nor token: plaintext */
  | { t: 'none' }
  | { t: 'to enrol'; token: string }
  | { t: 'enrolled'; notBeforeMs: number; notAfterMs: number }
  /** its key alone may still get another */
  | { t: 'expired'; notAfterMs: number };

interface Kept { certificate: X509Certificate; chainPem: string; caPem: string }

export class DeviceIdentity {
  private kept: Kept | null = null;
  private key: KeyObject | null = null;
  private readonly listeners = new Set<() => void>();

  /** `token`: null where none was given */
  constructor(private readonly folder: StateFolder, private readonly token: { text: string; parsed: EnrolmentTokenText } | null, private readonly now: () => number, private readonly log: Logger) {}

  /** Reads what is kept. What is damaged is told and counts as nothing; a token then gets it anew. */
  load(): void {
    try {
      const [keyPem, chainPem, caPem] = [this.folder.read(FILES.key), this.folder.read(FILES.certificate), this.folder.read(FILES.ca)];
      if (keyPem) this.key = createPrivateKey(keyPem);
      if (!keyPem || !chainPem || !caPem) return;
      const certificate = new X509Certificate(chainPem);
      if (!certificate.checkPrivateKey(this.key!)) throw new Error('key and certificate do not belong together');
      if (this.token && fingerprintOf(caPem) !== this.token.parsed.caFingerprint) {
        this.log.warn({ caFingerprint: fingerprintOf(caPem), tokenFingerprint: this.token.parsed.caFingerprint }, 'the token is of another fleet than the certificate; enrolling there');
        return;
      }
      this.kept = { certificate, chainPem, caPem };
    } catch (error) {
      this.log.error({ files: Object.values(FILES), reason: (error as Error).message }, 'the stored identity cannot be read; enrol again with --enrol-token');
    }
  }

  get state(): IdentityState {
    if (!this.kept) return this.token ? { t: 'to enrol', token: this.token.text } : { t: 'none' };
    const { validFrom, validTo } = this.kept.certificate;
    const notAfterMs = Date.parse(validTo);
    return notAfterMs <= this.now() ? { t: 'expired', notAfterMs } : { t: 'enrolled', notBeforeMs: Date.parse(validFrom), notAfterMs };
  }

  /** DER; null before enrolment */
  get certificate(): Buffer | null {
    return this.kept?.certificate.raw ?? null;
  }

  /** PEM; null before enrolment */
  get caPem(): string | null {
    return this.kept?.caPem ?? null;
  }

  get enrolmentToken(): { text: string; parsed: EnrolmentTokenText } | null {
    return this.token;
  }

  /** Made and written before it is first used, so that a repeated enrolment has the same key. */
  privateKey(): KeyObject {
    if (!this.key) {
      this.key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
      this.folder.write(FILES.key, this.key.export({ type: 'pkcs8', format: 'pem' }) as string);
    }
    return this.key;
  }

  /** `caPem`: whom it was got from. Throws where the chain is not of this key. */
  keep(chainPem: string, caPem: string): void {
    const certificate = new X509Certificate(chainPem);
    if (!certificate.checkPrivateKey(this.privateKey())) throw new Error('the coordinator gave a certificate for another key');
    this.folder.write(FILES.ca, caPem);
    this.folder.write(FILES.certificate, chainPem);
    this.kept = { certificate, chainPem, caPem };
    for (const listener of this.listeners) listener();
  }

  /** What other connections than the stream are made with; null before enrolment. */
  get tls(): DeviceTls | null {
    if (!this.kept) return null;
    return { ca: this.kept.caPem, key: this.privateKey().export({ type: 'pkcs8', format: 'pem' }) as string, cert: this.kept.chainPem };
  }

  /** Whether the certificate lets this device be a server to others; those of earlier coordinators do not. */
  get mayServe(): boolean {
    return this.kept?.certificate.keyUsage?.includes(SERVER_AUTH) ?? false;
  }

  /** Told when there is a certificate, or another. */
  onKept(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** How to dial the agents' stream: with the certificate, or in plaintext where there is none. */
  channel(): ChannelSecurity {
    if (!this.kept) return PLAINTEXT;
    const key = this.privateKey().export({ type: 'pkcs8', format: 'pem' });
    return secureChannel({ ca: this.kept.caPem, key, cert: this.kept.chainPem });
  }
}

/** TLS 1.3 to whoever the fleet's CA calls a coordinator, whatever its address. */
export function secureChannel(context: { ca: string; key?: string | Buffer; cert?: string }): ChannelSecurity {
  return {
    credentials: credentials.createFromSecureContext(createSecureContext({ ...context, minVersion: 'TLSv1.3' })),
    options: { 'grpc.ssl_target_name_override': COORDINATOR_NAME },
  };
}

/** hex SHA-256 of the certificate's DER */
export function fingerprintOf(pem: string): string {
  return createHash('sha256').update(new X509Certificate(pem).raw).digest('hex');
}
