/**
 * The text of an enrolment token: `mft1.<secret>.<fingerprint>`, both in base64url. The secret is 256 random bits; the
 * fingerprint is the SHA-256 of the fleet CA's certificate, so that a device knows whom to trust before it has ever
 * spoken to anyone.
 */
export interface EnrolmentTokenText {
  /** 32 bytes */
  secret: Buffer;
  /** hex, 64 digits */
  caFingerprint: string;
}

const FORM = /^mft1\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})$/;

export function printEnrolmentToken({ secret, caFingerprint }: EnrolmentTokenText): string {
  return `mft1.${secret.toString('base64url')}.${Buffer.from(caFingerprint, 'hex').toString('base64url')}`;
}

/** null for a text that is no token. */
export function parseEnrolmentToken(text: string): EnrolmentTokenText | null {
  const match = FORM.exec(text.trim());
  if (!match) return null;
  return { secret: Buffer.from(match[1]!, 'base64url'), caFingerprint: Buffer.from(match[2]!, 'base64url').toString('hex') };
}
