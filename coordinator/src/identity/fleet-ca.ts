/**
 * The fleet's certificate authority: one ECDSA P-256 key in a folder that all coordinators of the fleet share. It
 * signs two kinds of certificates and no others. A coordinator's is for servers, under the names and addresses that it is
 * reached at. A device's is for clients, and for the listener at which devices beside it fetch models: as a server it has
 * one name, under a domain that no coordinator can have (deviceHost). So neither can be used as the other, whatever a
 * device calls itself. Whoever has the key is the fleet.
 */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { createHash, createPrivateKey, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isIP } from 'node:net';
import { COORDINATOR_NAME } from '@moefleet/runtime';

const KEY_ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' } as const;
const DAY_MS = 24 * 3_600_000;
const CA_LIFE_MS = 20 * 365 * DAY_MS;
/** Devices whose clock is behind by less than this still accept what was just made. */
const BACKDATE_MS = 3_600_000;
/** Below it lie the names of devices, and no coordinator's. */
const NO_HOST = 'moefleet.invalid';

export const FLEET_FILES = { certificate: 'ca.pem', key: 'ca-key.pem', settings: 'fleet.json' } as const;

/** The folder of the authority, or a file in it, is not what it has to be. */
export class FleetFolderError extends Error {
  override readonly name = 'FleetFolderError';
}

export interface FleetSettings {
  name: string;
  /** names and addresses that certificates of coordinators carry besides loopback */
  hosts: string[];
}

export interface Issued {
  /** PEM of the certificate, followed by that of the authority */
  chainPem: string;
  serial: string;
  notBeforeMs: number;
  notAfterMs: number;
}

export class FleetCa {
  private constructor(
    readonly certificatePem: string,
    readonly settings: FleetSettings,
    private readonly certificate: x509.X509Certificate,
    private readonly key: webcrypto.CryptoKey,
    /** hex SHA-256 of the certificate's DER: what tokens pin */
    readonly fingerprint: string,
  ) {}

  /** Makes a new authority. Throws FleetFolderError where one is there already. */
  static async create(folder: string, settings: FleetSettings, nowMs: number): Promise<FleetCa> {
    for (const file of Object.values(FLEET_FILES)) {
      if (existsSync(join(folder, file))) throw new FleetFolderError(`${join(folder, file)}: is there already, and every device of its fleet depends on it; choose another --dir`);
    }
    const keys = await webcrypto.subtle.generateKey(KEY_ALGORITHM, true, ['sign', 'verify']);
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: newSerial(),
      name: new x509.Name([{ CN: [`moefleet ${settings.name}`] }, { O: ['moefleet fleet CA'] }]).toString(),
      notBefore: new Date(nowMs - DAY_MS), notAfter: new Date(nowMs + CA_LIFE_MS),
      keys, signingAlgorithm: SIGNATURE,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    const pkcs8 = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey));
    writeAll(folder, {
      [FLEET_FILES.key]: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY') + '\n',
      [FLEET_FILES.settings]: `${JSON.stringify(settings, null, 2)}\n`,
      [FLEET_FILES.certificate]: `${certificate.toString('pem')}\n`,
    });
    return FleetCa.load(folder);
  }

  /** Throws FleetFolderError, which names the file. */
  static async load(folder: string): Promise<FleetCa> {
    const pem = readNamed(folder, FLEET_FILES.certificate);
    const keyPem = readNamed(folder, FLEET_FILES.key);
    const certificate = parsed(join(folder, FLEET_FILES.certificate), 'a certificate in PEM', () => new x509.X509Certificate(pem));
    const node = parsed(join(folder, FLEET_FILES.certificate), 'a certificate in PEM', () => new X509Certificate(pem));
    const privateKey = parsed(join(folder, FLEET_FILES.key), 'a private key in PEM', () => createPrivateKey(keyPem));
    if (!node.ca) throw new FleetFolderError(`${join(folder, FLEET_FILES.certificate)}: is the certificate of no authority; make one with: moefleet fleet init --dir DIR`);
    if (!node.checkPrivateKey(privateKey)) throw new FleetFolderError(`${join(folder, FLEET_FILES.key)}: is not the key of ${FLEET_FILES.certificate}; copy both files from the same fleet`);
    const der = privateKey.export({ type: 'pkcs8', format: 'der' });
    const key = await webcrypto.subtle.importKey('pkcs8', der, KEY_ALGORITHM, false, ['sign'])
      .catch((cause: unknown) => { throw new FleetFolderError(`${join(folder, FLEET_FILES.key)}: is not an ECDSA P-256 key; make one with: moefleet fleet init --dir DIR`, { cause }); });
    return new FleetCa(`${certificate.toString('pem')}\n`, readSettings(folder), certificate, key, createHash('sha256').update(node.raw).digest('hex'));
  }

  /** A certificate that lets its holder be a coordinator under `hosts`, and under the name that agents ask for. */
  issueServer(publicKey: webcrypto.CryptoKey, hosts: readonly string[], nowMs: number, lifeMs: number): Promise<Issued> {
    const names = [...new Set([COORDINATOR_NAME, 'localhost', '127.0.0.1', '::1', ...this.settings.hosts, ...hosts])].filter((name) => !isDevicesName(name));
    return this.issue(publicKey, [{ CN: [COORDINATOR_NAME] }], nowMs, lifeMs, [x509.ExtendedKeyUsage.serverAuth], [
      new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: isIP(value) ? 'ip' : 'dns', value }))),
    ]);
  }

  /**
   * `publicKey`: what a checked request carries. The subject is the device and its installation. The name beside it is there
   * so that the subject is never taken for a host's: without any, TLS clients hold the name they have dialled against it.
   */
  issueDevice(publicKey: x509.PublicKey, deviceId: string, installId: string, nowMs: number, lifeMs: number): Promise<Issued> {
    return this.issue(publicKey, [{ CN: [deviceId] }, { OU: [installId] }], nowMs, lifeMs, [x509.ExtendedKeyUsage.clientAuth, x509.ExtendedKeyUsage.serverAuth], [
      new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: deviceHost(deviceId) }]),
    ]);
  }

  /** Whether this authority has signed it; says nothing of its dates. */
  hasIssued(certificate: X509Certificate): boolean {
    const authority = new X509Certificate(this.certificatePem);
    return certificate.checkIssued(authority) && certificate.verify(authority.publicKey);
  }

  private async issue(
    publicKey: webcrypto.CryptoKey | x509.PublicKey, subject: x509.JsonName, nowMs: number, lifeMs: number, usages: x509.ExtendedKeyUsage[], more: x509.Extension[],
  ): Promise<Issued> {
    // Certificates count in whole seconds.
    const notBeforeMs = Math.floor((nowMs - Math.min(BACKDATE_MS, lifeMs)) / 1000) * 1000;
    const notAfterMs = Math.floor((nowMs + lifeMs) / 1000) * 1000;
    const serial = newSerial();
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serial, subject: new x509.Name(subject).toString(), issuer: this.certificate.subject,
      notBefore: new Date(notBeforeMs), notAfter: new Date(notAfterMs),
      publicKey, signingKey: this.key, signingAlgorithm: SIGNATURE,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension(usages),
        await x509.AuthorityKeyIdentifierExtension.create(this.certificate.publicKey),
        ...more,
      ],
    });
    return { chainPem: `${certificate.toString('pem')}\n${this.certificatePem}`, serial, notBeforeMs, notAfterMs };
  }
}

/**
 * The only name a device's certificate is good for as a server's. A hash, because an id may hold what a host's name may
 * not; `.invalid` is set aside for names that stand for no host (RFC 2606), and `issueServer` refuses it.
 */
export function deviceHost(deviceId: string): string {
  return `${createHash('sha256').update(deviceId).digest('hex').slice(0, 32)}.device.${NO_HOST}`;
}

/** 127 random bits: positive, and never twice. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return bytes.toString('hex');
}

function isDevicesName(name: string): boolean {
  return name.toLowerCase().replace(/\.$/, '').endsWith(`.${NO_HOST}`);
}

/** Each file is new, or nothing of this is left. */
function writeAll(folder: string, files: Record<string, string>): void {
  const written: string[] = [];
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(join(folder, name), text, { mode: 0o600, flag: 'wx' });
      written.push(name);
    }
  } catch (cause) {
    for (const name of written) rmSync(join(folder, name), { force: true });
    throw new FleetFolderError(`${folder}: the fleet's files cannot be written (${(cause as Error).message})`, { cause });
  }
}

function readNamed(folder: string, file: string): string {
  try {
    return readFileSync(join(folder, file), 'utf8');
  } catch (cause) {
    throw new FleetFolderError(`${join(folder, file)}: cannot be read (${(cause as NodeJS.ErrnoException).code}); make a fleet with \`moefleet fleet init --dir ${folder}\`, or copy its folder here`, { cause });
  }
}

function readSettings(folder: string): FleetSettings {
  const path = join(folder, FLEET_FILES.settings);
  // The key and the certificate alone are enough.
  if (!existsSync(path)) return { name: 'fleet', hosts: [] };
  const value = parsed(path, 'JSON with a name and hosts', () => JSON.parse(readNamed(folder, FLEET_FILES.settings)) as Partial<FleetSettings> | null);
  if (typeof value?.name !== 'string' || !Array.isArray(value.hosts) || !value.hosts.every((host) => typeof host === 'string')) {
    throw new FleetFolderError(`${path}: is not JSON with a name and hosts; remove it, or write {"name": "fleet", "hosts": []}`);
  }
  return { name: value.name, hosts: value.hosts };
}

function parsed<T>(path: string, what: string, parse: () => T): T {
  try {
    return parse();
  } catch (cause) {
    throw new FleetFolderError(`${path}: is not ${what} (${(cause as Error).message}); copy the fleet's folder again`, { cause });
  }
}
