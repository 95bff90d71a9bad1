/**
 * A coordinator's own certificate: issued by itself from the fleet's authority at start, kept in memory only, made anew
 * with a new key long before it expires. Connections that stand are not disturbed by that. TLS 1.3 and nothing older.
 */
import { ServerCredentials } from '@grpc/grpc-js';
import { KeyObject, webcrypto } from 'node:crypto';
import { hostname } from 'node:os';
import type { SecureContextOptions } from 'node:tls';
import type { Logger, Service } from '@moefleet/runtime';
import { FleetCa } from './fleet-ca';

const LIFE_MS = 30 * 24 * 3_600_000;
const LOOK_EVERY_MS = 3_600_000;

/** Credentials whose certificate may be replaced while the server runs. */
class RenewableCredentials extends ServerCredentials {
  /** `clients`: ask for a certificate; whether one is needed is decided per call, because a device enrols without. */
  constructor(clients: boolean, context: SecureContextOptions) {
    super({ requestCert: clients, rejectUnauthorized: false, minVersion: 'TLSv1.3' }, context);
  }

  replace(context: SecureContextOptions): void {
    this.updateSecureContextOptions(context);
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

export interface ServerCertificateOptions {
  folder: string;
  /** more names and addresses that this coordinator is reached at */
  hosts: readonly string[];
  now: () => number;
}

export class ServerCertificate implements Service {
  readonly name = 'server certificate';
  private loaded: FleetCa | null = null;
  private context: SecureContextOptions = {};
  private renewAtMs = 0;
  private readonly followers: ((context: SecureContextOptions) => void)[] = [];
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly options: ServerCertificateOptions, private readonly log: Logger) {}

  /** Throws before `start`. */
  get ca(): FleetCa {
    if (!this.loaded) throw new Error('the fleet CA is not loaded yet');
    return this.loaded;
  }

  /** Throws FleetFolderError. */
  async start(): Promise<void> {
    this.loaded = await FleetCa.load(this.options.folder);
    await this.renew();
    this.timer = setInterval(() => void this.renewIfDue().catch((err: unknown) => this.log.error({ err }, 'server certificate cannot be renewed')), LOOK_EVERY_MS);
    this.timer.unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
  }

  /** For a listener; `clients`: devices may show a certificate of theirs. */
  credentials(clients: boolean): ServerCredentials {
    const made = new RenewableCredentials(clients, this.context);
    this.followers.push((context) => made.replace(context));
    return made;
  }

  /** For a server of another kind: told the certificate now, and again whenever it has been replaced. */
  follow(take: (context: SecureContextOptions) => void): void {
    this.followers.push(take);
    take(this.context);
  }

  /** Whether it was replaced: done at two thirds of its life. */
  async renewIfDue(): Promise<boolean> {
    if (this.options.now() < this.renewAtMs) return false;
    await this.renew();
    return true;
  }

  private async renew(): Promise<void> {
    const nowMs = this.options.now();
    const keys = await webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
    const issued = await this.ca.issueServer(keys.publicKey, [hostname(), ...this.options.hosts], nowMs, LIFE_MS);
    const key = KeyObject.from(keys.privateKey).export({ type: 'pkcs8', format: 'pem' });
    this.context = { minVersion: 'TLSv1.3', ca: this.ca.certificatePem, cert: issued.chainPem, key };
    for (const take of this.followers) take(this.context);
    this.renewAtMs = nowMs + (LIFE_MS * 2) / 3;
    this.log.info({ fingerprint: this.ca.fingerprint, fleet: this.ca.settings.name, notAfterMs: issued.notAfterMs }, 'server certificate issued');
  }
}
