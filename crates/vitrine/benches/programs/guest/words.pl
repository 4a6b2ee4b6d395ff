# Hashes, regular expressions, sorting and formatting: the words of a text.
use strict;
use warnings;
my (%count, %follows, $last);
while (my $line = <>) {
    $line =~ s/\b0x([0-9a-f]+)\b/length $1/gie;
    for my $word ($line =~ /[A-Za-z_]\w*/g) {
        $count{lc $word}++;
        $follows{$last}{$word}++ if defined $last && length $last > 3;
        $last = $word;
    }
}
for my $word ((sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 999]) {
    my $next = $follows{$word} || {};
    my ($best) = sort { $next->{$b} <=> $next->{$a} || $a cmp $b } keys %$next;
    printf "%-30s %6d %s\n", $word, $count{$word}, $best // '-';
}
